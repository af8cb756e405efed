-- +goose Up

-- The number of the layout of Streamkeel's tables, in one row. A program that finds a number that it
-- does not know refuses to work. The schema may have been created by somebody with more rights.
-- +goose StatementBegin
DO $$
BEGIN
	IF to_regnamespace('streamkeel') IS NULL THEN
		CREATE SCHEMA streamkeel;
	END IF;
END
$$;
-- +goose StatementEnd

CREATE TABLE streamkeel.layout (version int NOT NULL);
CREATE UNIQUE INDEX layout_one_row ON streamkeel.layout ((true));
INSERT INTO streamkeel.layout (version) VALUES (1);
