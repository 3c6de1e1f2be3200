"""The Lua of a consumer group: what has to look before it does something. One key each, the stream."""

#: Makes the group at the beginning of the stream, and gives it a mark unless it has one. What was removed from the
#: stream before that counts as read: nobody has promised anything about it. Keys: stream. Arguments: group, mark, what
#: marks begin with.
CREATE = """
local found = redis.pcall('XINFO', 'STREAM', KEYS[1])
local added, length = 0, 0
if not found.err then
  for i = 1, #found, 2 do
    if found[i] == 'entries-added' then added = found[i + 1] end
    if found[i] == 'length' then length = found[i + 1] end
  end
end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM', 'ENTRIESREAD', added - length)
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  for i = 1, #consumer, 2 do
    if consumer[i] == 'name' and string.sub(consumer[i + 1], 1, #ARGV[3]) == ARGV[3] then return 0 end
  end
end
redis.call('XGROUP', 'CREATECONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
"""

#: Removes what every group has acknowledged, but for the last entries. Keys: stream. Arguments: entries to keep, how
#: many to remove at most, and an id beyond which nothing is removed.
TRIM = """
local function before(a, b)
  local am, as = string.match(a, '^(%d+)-(%d+)$')
  local bm, bs = string.match(b, '^(%d+)-(%d+)$')
  if am ~= bm then return tonumber(am) < tonumber(bm) end
  return tonumber(as) < tonumber(bs)
end
local excess = math.min(redis.call('XLEN', KEYS[1]) - tonumber(ARGV[1]), tonumber(ARGV[2]))
if excess <= 0 then return 0 end
local safe = ARGV[3]
local grouped = false
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local facts = {}
  for i = 1, #group, 2 do facts[group[i]] = group[i + 1] end
  local acked = facts['last-delivered-id']
  if facts['pending'] > 0 then acked = redis.call('XPENDING', KEYS[1], facts['name'])[2] end
  if before(acked, safe) then safe = acked end
  grouped = true
end
if not grouped then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', safe, 'LIMIT', excess)
"""

#: redis-py drops the cursor of an XAUTOCLAIM with JUSTID, and with it all but the first page. Keys: stream. Arguments:
#: group, consumer, idle ms, cursor, how many.
CLAIM_IDLE = """
return redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5], 'JUSTID')
"""

#: Removes consumers that have nothing pending and have not been heard of for a while; the check and the removal are
#: one, since what is delivered in between would go with the consumer. Keys: stream. Arguments: group, idle ms, the one
#: to look at ('': all), what marks begin with.
REMOVE = """
local removed = {}
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local facts = {}
  for i = 1, #consumer, 2 do facts[consumer[i]] = consumer[i + 1] end
  local name = facts['name']
  local meant = (ARGV[3] == '' or name == ARGV[3]) and string.sub(name, 1, #ARGV[4]) ~= ARGV[4]
  if meant and facts['pending'] == 0 and facts['idle'] >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
    removed[#removed + 1] = name
  end
end
return removed
"""
