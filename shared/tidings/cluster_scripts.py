"""The Lua of a cluster, with one key each: `scripts` taken apart, in the order in which `cluster_operations` puts it.

The decisions are those of `scripts`, which has the reasons. Times are those of the node that has the invalidation log.
"""

from .layout import ENTRY, KEPT, LINEAGE_END, LINEAGE_START, NO_TOKEN, UNIQUE_LENGTH, VACANT
from .scripts import LAST, NOW, Script, lua

# Key: entry. Arguments: vacancy, its ms, renew?. Gives kind and lineage, as `scripts.OPEN` does.
OPEN_ENTRY = Script.of(f"""
local head = redis.pcall('GETRANGE', KEYS[1], 0, {LINEAGE_END - 1})
local kind = type(head) == 'string' and #head == {LINEAGE_END} and string.sub(head, 1, {LINEAGE_START})
if kind == {lua(ENTRY)} or kind == {lua(KEPT)} or kind == {lua(VACANT)} then
  if ARGV[3] == '1' then
    redis.call('SETRANGE', KEYS[1], {LINEAGE_START}, string.sub(ARGV[1], {LINEAGE_START + 1}))
    head = kind .. string.sub(ARGV[1], {LINEAGE_START + 1})
  end
  if kind == {lua(VACANT)} then redis.call('PEXPIRE', KEYS[1], ARGV[2], 'GT') end
  return head
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
""")

# Key: token. Arguments: a fresh value, the time, ms. Gives the token, made where there was none.
FIRST_USE = Script.of(f"""
local token = redis.pcall('GET', KEYS[1])
if type(token) == 'string' and #token >= {UNIQUE_LENGTH} then return token end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2] .. ' {NO_TOKEN.decode()} first use', 'PX', ARGV[3])
return redis.call('GET', KEYS[1])
""")

# Key: lease. Arguments: owner, what it is taken under, ms. Gives 1 and 0, or 0 and the ms that another's has left.
TAKE_LEASE = Script.of(f"""
local held = redis.pcall('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
local under = ARGV[2]
local same = type(held) == 'string' and string.sub(held, {UNIQUE_LENGTH + 1}, {UNIQUE_LENGTH} + #under) == under
if same and left > 0 then
  if string.sub(held, -2) ~= ' w' then redis.call('APPEND', KEYS[1], ' w') end
  return {{0, left}}
end
local waited = type(held) == 'string' and string.sub(held, -2) == ' w' and ' w' or ''
redis.call('SET', KEYS[1], ARGV[1] .. under .. waited, 'PX', ARGV[3])
return {{1, 0}}
""")

# Key: lease. Argument: owner. Gives 1 when somebody waits to be told of its end.
END_LEASE = Script.of(f"""
local held = redis.pcall('GET', KEYS[1])
if type(held) ~= 'string' or string.sub(held, 1, {UNIQUE_LENGTH}) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
return string.sub(held, -2) == ' w' and 1 or 0
""")

# Key: wakes. Gives the last id.
WAKES_END = Script.of("""
local last = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
return last[1] and last[1][1] or '0-0'
""")

# Key: wakes. Argument: entry.
TELL = Script.of("""
local told = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', 1000, '*', 'key', ARGV[1])
if type(told) ~= 'string' then redis.call('DEL', KEYS[1]) end
""")

# Key: entry. Arguments: lineage, header, rest, ms. Gives whether it was stored.
FILL_ENTRY = Script.of(f"""
{NOW}
if redis.pcall('GETRANGE', KEYS[1], {LINEAGE_START}, {LINEAGE_END - 1}) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2] .. now .. ARGV[3], 'PX', ARGV[4])
return 1
""")

# Key: entry. Arguments: header, rest, ms.
PUT_ENTRY = Script.of(f"""
{NOW}
redis.call('SET', KEYS[1], ARGV[1] .. now .. ARGV[2], 'PX', ARGV[3])
""")

# Key: entry. Arguments: vacancy, its ms. Gives whether there was a value.
INVALIDATE_ENTRY = Script.of(f"""
local kind = redis.pcall('GETRANGE', KEYS[1], 0, {LINEAGE_START - 1})
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return (kind == {lua(ENTRY)} or kind == {lua(KEPT)}) and 1 or 0
""")

# Key: token. Arguments: a fresh value, the time, why, ms.
INVALIDATE_TOKEN = Script.of(f"""
local before = redis.pcall('GETRANGE', KEYS[1], 0, {UNIQUE_LENGTH - 1})
if type(before) ~= 'string' or #before ~= {UNIQUE_LENGTH} then before = '{NO_TOKEN.decode()}' end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. before .. ' ' .. ARGV[3], 'PX', ARGV[4])
""")

# Key: log. Gives its last id and time; begins an empty one.
LOG_END = Script.of(f"""
{NOW}
{LAST}
local logged, at = last_of(KEYS[1])
if logged ~= '' then return {{logged, digits(at)}} end
logged = redis.call('XADD', KEYS[1], '*', 'prev', '0-0', 'what', '{{"tokens":{{}},"entries":[]}}', 'at', now)
return {{logged, now}}
""")

# Key: log. Arguments: length, what it says, for a notice the tokens that are about to be invalidated, or '', and the
# cause of what is no token's, or ''. Gives the time of the entry, which is behind that of the one before it.
LOG = Script.of(f"""
{NOW}
{LAST}
local logged, at = last_of(KEYS[1])
local stamp = digits(math.max(tonumber(now), at + 1))
local entry = {{'prev', logged == '' and '0-0' or logged, 'what', ARGV[2], 'at', stamp}}
if ARGV[3] ~= '' then entry[7], entry[8] = 'notice', ARGV[3] end
if ARGV[4] ~= '' then entry[#entry + 1] = 'why' entry[#entry + 1] = ARGV[4] end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(entry))
return stamp
""")
