package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/spf13/pflag"
)

// Health is what a daemon tells of itself: whether it is ready, and if not why.
type Health struct {
	secrets *Secrets
	checks  map[string]func(context.Context) error

	mu       sync.Mutex
	draining bool
	answer   readiness
	at       time.Time
}

// readiness is the body of /readyz.
type readiness struct {
	Ready bool `json:"ready"`
	// Reasons say why not: one for each check that fails.
	Reasons []string `json:"reasons"`
	// Checks has "ok" or the reason of each check.
	Checks map[string]string `json:"checks"`
}

// How long a check may take, and how long an answer is good for: any number of probes cost
// the servers one look a second.
const (
	checkTimeout  = 2 * time.Second
	answerGoodFor = time.Second
)

// NewHealth returns a health with named checks, all of which must succeed.
func NewHealth(secrets *Secrets, checks map[string]func(context.Context) error) *Health {
	return &Health{secrets: secrets, checks: checks}
}

// Drain makes the daemon unready: it is about to end.
func (h *Health) Drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining, h.at = true, time.Time{}
}

func (h *Health) look(ctx context.Context) readiness {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.at) < answerGoodFor {
		return h.answer
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout) // the answer is for others too
	defer cancel()
	results := map[string]error{}
	var mu sync.Mutex
	var looks sync.WaitGroup
	for name, check := range h.checks {
		looks.Go(func() {
			err := check(ctx)
			mu.Lock()
			defer mu.Unlock()
			results[name] = err
		})
	}
	looks.Wait()
	if h.draining {
		results["draining"] = errors.New("the daemon was told to end")
	}
	h.answer = readiness{Ready: true, Reasons: []string{}, Checks: map[string]string{}}
	for _, name := range slices.Sorted(maps.Keys(results)) {
		if err := results[name]; err != nil {
			reason := h.secrets.Redact(OneLine(err))
			h.answer.Ready = false
			h.answer.Reasons = append(h.answer.Reasons, name+": "+reason)
			h.answer.Checks[name] = reason
		} else {
			h.answer.Checks[name] = "ok"
		}
	}
	h.at = time.Now()
	return h.answer
}

func (h *Health) ready(w http.ResponseWriter, r *http.Request) {
	answer := h.look(r.Context())
	body, err := json.Marshal(answer)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if !answer.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write(append(body, '\n')) // whoever asked is gone
}

// HTTPFlags say where a daemon answers.
type HTTPFlags struct {
	Listen  string
	Disable bool
}

// Register adds the flags.
func (h *HTTPFlags) Register(flags *pflag.FlagSet, listen string) {
	flags.StringVar(&h.Listen, "listen", listen, "`host:port` that answers /healthz, /readyz and /metrics over HTTP")
	flags.BoolVar(&h.Disable, "disable-http", false, "answer nothing")
}

// Validate returns the faults.
func (h *HTTPFlags) Validate() []error {
	if _, port, err := net.SplitHostPort(h.Listen); err != nil || port == "" {
		return []error{fmt.Errorf("--listen %q is no host:port, such as 127.0.0.1:8641 or :8641", h.Listen)}
	}
	return nil
}

// Server answers /healthz, /readyz and /metrics.
type Server struct {
	http     *http.Server
	listener net.Listener
}

// NewServer takes the port; the error is Unfit. With Disable it returns a server that does
// nothing.
func (h *HTTPFlags) NewServer(ctx context.Context, health *Health, metrics http.Handler, log *slog.Logger) (*Server, error) {
	if h.Disable {
		return &Server{}, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", h.Listen)
	if err != nil {
		return nil, Unfitf("%w; choose another address with --listen, or none with --disable-http", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", health.ready)
	mux.Handle("GET /metrics", metrics)
	return &Server{listener: listener, http: &http.Server{
		Handler: guardHeaders(mux), ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10,
	}}, nil
}

func guardHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// Addr returns the address that it listens on, or "".
func (s *Server) Addr() string {
	if s.listener == nil {
		return ""
	}
	return s.listener.Addr().String()
}

// Run answers until ctx ends, lets answers in work come to their end for a second, and returns
// nil then.
func (s *Server) Run(ctx context.Context) error {
	if s.http == nil {
		<-ctx.Done()
		return nil
	}
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("HTTP server: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := s.http.Shutdown(grace); err != nil {
		_ = s.http.Close() // what is left is cut
	}
	<-served
	return nil
}
