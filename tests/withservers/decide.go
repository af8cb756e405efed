package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/streamkeel/streamkeel/internal/servers"
)

// source is where a server comes from.
type source int

const (
	given     source = iota + 1 // its variable is set
	local                       // programs on this machine
	container                   // an image
)

// world is what a decision depends on and what it may change.
type world interface {
	servers() []server
	getenv(name string) string
	// image fails unless a Docker daemon answers that can run the image without pulling anything.
	image(ctx context.Context, name string) error
	// install installs Debian packages, or says why it cannot.
	install(ctx context.Context, packages ...string) error
}

// decide finds out where a server comes from. Whatever is installed for it, is installed here.
func decide(ctx context.Context, w world, s server, containers bool) (source, error) {
	if containers {
		return container, nil
	}
	if w.getenv(s.variable) != "" {
		return given, nil
	}
	missing := s.find()
	if missing == nil {
		return local, nil
	}
	// Somebody who names a folder means its server, and no other one.
	if !errors.Is(missing, servers.ErrNotInstalled) || w.getenv(s.folderVariable) != "" {
		return 0, missing
	}
	noImage := w.image(ctx, s.imageName(w))
	if noImage == nil {
		return container, nil
	}
	noInstall := w.install(ctx, s.packages...)
	if noInstall == nil {
		if noInstall = s.find(); noInstall == nil {
			return local, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf(`%w
Else one of these helps:
  - a Docker daemon with the image: docker pull %s (now: %w)
  - root's rights, to install it with apt-get (now: %w)
  - %s with the URL of a server that is there for tests`,
		missing, s.imageName(w), noImage, noInstall, s.variable)
}
