// Package webhooks has real events to run examples, tests and the demo on: 329 GitHub
// webhook deliveries. testdata/README.md names their origin and licence.
package webhooks

import (
	"bufio"
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
)

//go:embed testdata/github-webhooks.jsonl.gz
var compressed []byte

// Delivery is a webhook as GitHub sent it.
type Delivery struct {
	// Event is the webhook's name, as in the X-GitHub-Event header.
	Event string `json:"event"`
	// Payload is the body.
	Payload json.RawMessage `json:"payload"`
}

// Subject is what every consumer here wants to know of a payload.
type Subject struct {
	Action     string `json:"action"`
	Repository struct {
		FullName string `json:"full_name"`
	} `json:"repository"`
	Organization struct {
		Login string `json:"login"`
	} `json:"organization"`
	Sender struct {
		Login string `json:"login"`
	} `json:"sender"`
}

// Load returns all deliveries, in the order of the file.
func Load() ([]Delivery, error) {
	zr, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	var all []Delivery
	lines := bufio.NewScanner(zr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var d Delivery
		if err := json.Unmarshal(lines.Bytes(), &d); err != nil {
			return nil, fmt.Errorf("webhooks: line %d: %w", len(all)+1, err)
		}
		all = append(all, d)
	}
	return all, errors.Join(lines.Err(), zr.Close())
}

// Subject reads what the delivery is about.
func (d Delivery) Subject() (Subject, error) {
	var s Subject
	if err := json.Unmarshal(d.Payload, &s); err != nil {
		return Subject{}, fmt.Errorf("webhooks: %s: %w", d.Event, err)
	}
	return s, nil
}

// EventType returns the type of the delivery's event: github.<event>[.<action>].
func (d Delivery) EventType(s Subject) string {
	if s.Action == "" {
		return "github." + d.Event
	}
	return "github." + d.Event + "." + s.Action
}

// Owner returns what a delivery is about: its repository, else its organisation, else
// its sender; a few have none of them.
func (s Subject) Owner() string {
	for _, name := range []string{s.Repository.FullName, s.Organization.Login, s.Sender.Login} {
		if name != "" {
			return name
		}
	}
	return "github"
}
