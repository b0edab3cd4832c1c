-- Where and when the newest stored batch of a partition began. The rate policy drain_time measures from batch to batch
-- how fast a partition is stored. An older version of Sluice leaves both as they are while it moves the offset: that
-- lengthens the time between two batches, and the measure stays right.
ALTER TABLE stored_offsets ADD COLUMN batch_began_offset bigint, ADD COLUMN batch_began_at timestamptz;
