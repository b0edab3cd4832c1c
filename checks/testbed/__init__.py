"""What judges and tests run Sluice with: processes, clocks that step, hosts, a pooler, raw connections, kits."""
