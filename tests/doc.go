// Package tests holds tests that need several packages, other modules, or faults of servers.
package tests
