"""redis-py, unmodified: `clients.py PRIMARY_PORT REPLICA_PORT` prints `ok`."""
import sys
import time

import redis

primary = redis.Redis(port=int(sys.argv[1]), socket_timeout=10)
replica = redis.Redis(port=int(sys.argv[2]), socket_timeout=10)

assert primary.ping()
assert primary.set("py:text", "caf\u00e9") and primary.get("py:text") == "caf\u00e9".encode()
binary = bytes(range(256)) * 64
assert primary.set("py:binary", binary) and primary.get("py:binary") == binary
assert primary.set("py:text", "other", nx=True) is None
assert primary.incrby("py:count", 5) == 5 and primary.decr("py:count") == 4
assert primary.setex("py:short", 100, "x") and 0 < primary.ttl("py:short") <= 100
assert primary.persist("py:short") and primary.ttl("py:short") == -1

pipe = primary.pipeline(transaction=False)
for i in range(1000):
    pipe.set(f"many:{i}", i)
assert all(pipe.execute())
assert primary.mget([f"many:{i}" for i in range(1000)]) == [str(i).encode() for i in range(1000)]
assert {k for k in primary.scan_iter(match="many:*", count=100)} == {f"many:{i}".encode() for i in range(1000)}
assert primary.delete("many:0", "many:1", "many:none") == 2
assert primary.get("many:0") is None

deadline = time.monotonic() + 30
while replica.exists("many:0") or replica.get("many:999") != b"999":
    assert time.monotonic() < deadline, "the replica does not catch up"
    time.sleep(0.05)
assert replica.get("py:binary") == binary
try:
    replica.set("py:text", "x")
    raise AssertionError("a replica took a write")
except redis.exceptions.ReadOnlyError:
    pass
print("ok")
