-- Which record was the last one stored of a partition: its digest, and its offset. A log that lost its tail and got new
-- events since holds another record there. The offset says whether the digest is of the stored offset as it is: a
-- person, or an older version of Sluice, may have moved that alone.
ALTER TABLE stored_offsets ADD COLUMN last_record_offset bigint, ADD COLUMN last_record_digest bytea;
