-- +goose Up

-- Entries that retention has trimmed from streams, as they stood there: package pgarchive.
CREATE TABLE streamkeel.archive (
	stream   text        NOT NULL,
	ms       bigint      NOT NULL, -- the two parts of the entry's ID
	seq      bigint      NOT NULL,
	fields   bytea[]     NOT NULL, -- name after value
	archived timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (stream, ms, seq)
);

-- +goose Down
DROP TABLE streamkeel.archive;
