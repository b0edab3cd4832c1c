-- The functions of the current schema: name and arguments.
SELECT proname, pg_get_function_arguments(oid)
FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace
ORDER BY proname
