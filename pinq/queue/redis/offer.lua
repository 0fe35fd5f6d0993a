-- with: jobs attempts controls answering leasing
-- What `lease` would give. Arguments: a seed, or false to take back nothing; what is wanted, as in
-- exchange.lua. Replies with the rows, and whether the worker holds a lease.

local seed, want = unpack(ARGS)
local queue = read_queue()
if not queue then
  return reply({ {}, false })
end
return reply({ offered(queue, want, seed or nil) })
