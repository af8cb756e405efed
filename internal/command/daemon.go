package command

import (
	"context"
	"log/slog"
	"net/http"

	"golang.org/x/sync/errgroup"
)

// Daemon is a program that works until it is told to end.
type Daemon struct {
	Health  *Health
	HTTP    HTTPFlags
	Metrics http.Handler
	Log     *slog.Logger
	// Work runs until its context ends, and then drains.
	Work func(ctx context.Context) error
}

// Run does the work, and tells of it over HTTP until it is drained. It returns nil when ctx
// ended and everything is drained. An error that is not Unfit was logged.
func (d *Daemon) Run(ctx context.Context) error {
	server, err := d.HTTP.NewServer(ctx, d.Health, d.Metrics, d.Log)
	if err != nil {
		return err
	}
	SendRedisLog(d.Log)
	d.Log.Info("started", "version", Version(), "listen", server.Addr())
	stopDraining := context.AfterFunc(ctx, func() {
		d.Log.Info("draining")
		d.Health.Drain()
	})
	defer stopDraining()

	serverCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServer()
	g, workCtx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Run(serverCtx) }) // its failure ends the work
	g.Go(func() error {
		defer stopServer()
		return d.Work(workCtx)
	})
	switch err := g.Wait(); {
	case IsUnfit(err):
		return err
	case err != nil:
		d.Log.Error("stopped", "err", err)
		return loggedError{err}
	}
	d.Log.Info("stopped")
	return nil
}
