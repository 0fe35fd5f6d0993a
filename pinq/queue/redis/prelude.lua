-- What every script begins with.
--
-- KEYS[1]  the key that says which slot the script works in
-- ARGV[1]  the time in milliseconds; empty for the server's
-- ARGV[2]  the channel that waiters listen to
-- ARGV[3]  the arguments in msgpack; what is absent is false, since a list of Lua holds no nil

local ARGS = cmsgpack.unpack(ARGV[3])

local TIME = redis.call('TIME')
local NOW = tonumber(ARGV[1]) or TIME[1] * 1000 + math.floor(TIME[2] / 1000)

local rings = false

-- Waiters are to look again, once the script has ended.
local function ring()
  rings = true
end

local function reply(value)
  if rings then
    -- Not `call`: what has been done stays done, though the user may not publish.
    redis.pcall('PUBLISH', ARGV[2], '')
  end
  return cmsgpack.pack(value)
end
