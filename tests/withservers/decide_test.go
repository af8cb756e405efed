package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/streamkeel/streamkeel/internal/servers"
)

func TestServerComesFromTheFirstSourceThatHasIt(t *testing.T) {
	for name, tc := range map[string]struct {
		world      fakeWorld
		containers bool
		want       source
		installs   []string
	}{
		"variable before all":     {world: fakeWorld{vars: map[string]string{"R_URL": "redis://x"}, programs: true, images: []string{"redis:8"}}, want: given},
		"programs before images":  {world: fakeWorld{programs: true, images: []string{"redis:8"}, apt: true}, want: local},
		"images before packages":  {world: fakeWorld{images: []string{"redis:8"}, apt: true}, want: container},
		"packages at last":        {world: fakeWorld{images: []string{"redis:7"}, apt: true}, want: local, installs: []string{"redis-server"}},
		"the image that is named": {world: fakeWorld{vars: map[string]string{"R_IMAGE": "valkey:9"}, images: []string{"valkey:9"}}, want: container},
		"containers are asked for": {
			world:      fakeWorld{vars: map[string]string{"R_URL": "redis://x"}, programs: true, apt: true},
			containers: true, want: container,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &tc.world
			got, err := decide(t.Context(), w, w.servers()[0], tc.containers)
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
			require.Equal(t, tc.installs, w.installed)
		})
	}
}

func TestServerThatCannotBeHadIsExplained(t *testing.T) {
	w := &fakeWorld{}
	_, err := decide(t.Context(), w, w.servers()[0], false)
	for _, part := range []string{"redis: not installed", "docker pull redis:8", "no daemon", "not root", "R_URL"} {
		require.ErrorContains(t, err, part)
	}
}

func TestPackagesThatDoNotHelpAreNoSuccess(t *testing.T) {
	w := &fakeWorld{apt: true, aptIsUseless: true}
	_, err := decide(t.Context(), w, w.servers()[0], false)
	require.ErrorIs(t, err, servers.ErrNotInstalled)
}

func TestFolderThatIsNamedIsNotPassedOver(t *testing.T) {
	w := &fakeWorld{vars: map[string]string{"R_BIN_DIR": "/wrong"}, images: []string{"redis:8"}, apt: true}
	_, err := decide(t.Context(), w, w.servers()[0], false)
	require.ErrorIs(t, err, servers.ErrNotInstalled)
	require.Empty(t, w.installed)
}

func TestInterruptEndsTheSearch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := &fakeWorld{}
	_, err := decide(ctx, w, w.servers()[0], false)
	require.ErrorIs(t, err, context.Canceled)
}

// fakeWorld has two servers, redis and postgres, and notes what is done to them.
type fakeWorld struct {
	vars         map[string]string
	programs     bool
	images       []string
	apt          bool
	aptIsUseless bool
	startFails   string // name of a server
	closeFails   bool

	installed []string
	log       []string
}

func (w *fakeWorld) getenv(name string) string { return w.vars[name] }

func (w *fakeWorld) image(_ context.Context, name string) error {
	if !slices.Contains(w.images, name) {
		return errors.New("no daemon")
	}
	return nil
}

func (w *fakeWorld) install(_ context.Context, packages ...string) error {
	if !w.apt {
		return errors.New("not root")
	}
	w.installed = append(w.installed, packages...)
	w.programs = !w.aptIsUseless
	return nil
}

func (w *fakeWorld) servers() []server {
	find := func() error {
		if !w.programs {
			return fmt.Errorf("redis: %w", servers.ErrNotInstalled)
		}
		return nil
	}
	begin := func(name, how string) (running, error) {
		w.log = append(w.log, how+" "+name)
		if w.startFails == name {
			return running{}, errors.New("no luck with " + name)
		}
		return running{url: name + "://" + how, close: func(context.Context) error {
			w.log = append(w.log, "close "+name)
			if w.closeFails {
				return errors.New("cannot close " + name)
			}
			return nil
		}}, nil
	}
	of := func(name, prefix, image, deb string) server {
		return server{
			name: name, variable: prefix + "_URL", folderVariable: prefix + "_BIN_DIR", imageVariable: prefix + "_IMAGE",
			image: image, packages: []string{deb}, find: find,
			start:   func(context.Context) (running, error) { return begin(name, "local") },
			contain: func(_ context.Context, image string) (running, error) { return begin(name, image) },
		}
	}
	return []server{of("redis", "R", "redis:8", "redis-server"), of("postgres", "P", "postgres:18", "postgresql")}
}
