-- The highest level that the requests with a key may have.
ALTER TABLE api_keys ADD COLUMN level text;  -- NULL: any
