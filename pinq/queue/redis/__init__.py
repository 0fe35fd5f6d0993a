"""The queue on Redis: transitions are Lua scripts, each over the keys of one queue."""
