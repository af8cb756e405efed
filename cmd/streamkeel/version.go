package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/streamkeel/streamkeel/internal/command"
	"github.com/streamkeel/streamkeel/migrations"
	"github.com/streamkeel/streamkeel/stream"
)

// versionDocument is what `version --json` prints.
type versionDocument struct {
	Version   string `json:"version"`
	Go        string `json:"go"`
	Layout    string `json:"layout"`    // of the keys in Redis
	Migration int64  `json:"migration"` // the last one that this version brings
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Tell the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			document := versionDocument{command.Version(), runtime.Version(), stream.Layout, migrations.Latest()}
			return a.print(document, func(w io.Writer) {
				fmt.Fprintf(w, "streamkeel %s, %s, layout %s, migration %d\n", document.Version, document.Go, document.Layout, document.Migration)
			})
		},
	}
}
