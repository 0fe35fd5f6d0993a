-- Take or renew a role. KEYS[1] is the hash of roles: name -> '<expires_at_ms> <holder>'.
-- Arguments: role, holder, ms. Replies whether the holder has it.

local role, holder, ms = unpack(ARGS)
local expires, now = string.match(redis.call('HGET', KEYS[1], role) or '0 ', '^(%d+) (.*)$')
if now ~= holder and tonumber(expires) > NOW then
  return reply(false)
end
redis.call('HSET', KEYS[1], role, string.format('%.0f %s', NOW + ms, holder))
return reply(true)
