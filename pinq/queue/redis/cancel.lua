-- with: jobs attempts choosing
-- Make pending and leased jobs dead. Arguments: filter, limit, span, a seed for the ids of events.
-- Replies with how many, and the id to go on after or false.

local filter, limit, span, seed = unpack(ARGS)
local queue = read_queue()
local found, after = choose(filter, limit, span)
for _, job in ipairs(found) do
  fail(queue, job, 'cancelled', 'cancelled by an operator', seed, nil, true, false)
  ring()
end
return reply({ #found, after })
