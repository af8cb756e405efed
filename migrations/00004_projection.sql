-- +goose Up

-- How far each projection is in each stream. The row moves in the transaction that holds what the
-- projection wrote, and only from the version that its writer had read: that is the fence between two runners.
CREATE TABLE streamkeel.projection_checkpoint (
	projection     text        NOT NULL,
	stream         text        NOT NULL, -- the stream's key
	version        bigint      NOT NULL, -- grows with each move
	last_id        text        NOT NULL, -- ID of the last entry that was passed, 0-0 for none
	last_event     text        NOT NULL, -- id of that entry's event, to know the entry again
	sequence_batch bigint      NOT NULL, -- the highest outbox position that was applied, 0 0 for none
	sequence_row   bigint      NOT NULL,
	entries_read   bigint      NOT NULL, -- entries ever added to the stream up to last_id, -1 where unknown
	max_deleted_id text        NOT NULL, -- deletions up to here are known and accounted for
	guard_id       text        NOT NULL, -- last_id before the stream was rewound: entries without a sequence up to here were applied
	moved_at       timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (projection, stream)
) WITH (fillfactor = 50); -- room for updates within the page, which touch no index
