-- What a move adds to the keys of a queue: moving, a hash of what it was told before it was
-- frozen, and moving:leases, a list of the leases that its jobs were parted from.

local MOVING = BASE .. 'moving'

-- Stands for the token of a leased job that is in no lease.
local PARTED = 'parted'

-- What `leased` says of a job.
local function entry(token, attempts, run_at_ms)
  return token .. ' ' .. attempts .. ' ' .. digits(run_at_ms) .. PAD
end
