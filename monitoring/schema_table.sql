-- The tables of the current schema as JSON, by name. Temporary tables are in another schema.
SELECT pg_class.relname, pg_class.reloptions,
       (
           SELECT json_agg(json_build_array(
                      attname,
                      format_type(atttypid, atttypmod)
                          || CASE WHEN attcollation <> typcollation THEN ' COLLATE ' || quote_ident(collname) ELSE '' END,
                      attnotnull,
                      CASE WHEN attidentity <> '' THEN 'identity' ELSE pg_get_expr(adbin, adrelid) END
                  ) ORDER BY attnum)
           FROM pg_attribute
           JOIN pg_type ON pg_type.oid = atttypid
           LEFT JOIN pg_collation ON pg_collation.oid = attcollation
           LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
           WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
       ),
       (
           SELECT json_agg(json_build_array(
                      name.relname,
                      CASE WHEN indisprimary THEN 'primary key' WHEN indisunique THEN 'unique' ELSE '' END,
                      regexp_replace(pg_get_indexdef(indexrelid), '^.* USING ', '')
                  ) ORDER BY indisprimary DESC, name.relname)
           FROM pg_index JOIN pg_class AS name ON name.oid = indexrelid
           WHERE indrelid = pg_class.oid
       ),
       (
           SELECT json_agg(pg_get_constraintdef(oid) ORDER BY conname)
           FROM pg_constraint WHERE conrelid = pg_class.oid AND contype IN ('c', 'f', 'x')
       )
FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
ORDER BY relname
