-- EnterEndpoint makes the rest of the transaction see whose the endpoint of that id is; "*": of all of them.
-- name: EnterEndpoint :one
SELECT set_config('role', 'holdfast_auth', true), set_config('app.endpoint_id', @endpoint_id::text, true);

-- FindEndpoint reads which tenant has the endpoint of that id: one, or none.
-- name: FindEndpoint :many
SELECT tenant_id, object_id FROM holdfast.objects
WHERE kind = 'linear_endpoint' AND object_id = @object_id AND NOT deleted;

-- ListEndpoints reads which endpoints there are, behind one.
-- name: ListEndpoints :many
SELECT tenant_id, object_id FROM holdfast.objects
WHERE kind = 'linear_endpoint' AND NOT deleted AND object_id > @after_id::text
ORDER BY object_id
LIMIT @page_size::integer;
