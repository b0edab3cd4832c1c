"""The tools with which judges and tests run Sluice: processes, stepped clocks, hosts, a pooler, connections, kits."""
