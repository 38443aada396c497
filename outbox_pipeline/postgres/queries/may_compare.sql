-- Whether the current user may ask whether a repeated event differs: an older schema does not have the function, and a role
-- with rights of its own may not have this one.
SELECT CAST(coalesce(
    has_function_privilege(to_regprocedure('outbox.event_differs(uuid, text, text, bigint)'), 'EXECUTE'), false
) AS text)
