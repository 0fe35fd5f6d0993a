-- Give up roles. KEYS[1] is the hash of roles: name -> '<expires_at_ms> <holder>'.
-- Arguments: a role, or false for every one; holder.

local role, holder = unpack(ARGS)
local roles = redis.call('HGETALL', KEYS[1])
for index = 1, #roles, 2 do
  if (not role or roles[index] == role) and string.match(roles[index + 1], ' (.*)$') == holder then
    redis.call('HDEL', KEYS[1], roles[index])
    ring()
  end
end
return reply(true)
