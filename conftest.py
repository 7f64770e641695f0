"""Where the kernels that pytest starts listen: on ports that nobody else is given in the moment before they open them.

A kernel opens its ports seconds after they were found to be free. The system hands out those above 32767 for connections all the time;
these are below, and each of pytest's workers has its own.
"""

import os
import random
import socket

from jupyter_client.connect import LocalPortCache

WORKERS, WORKER = 16, int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
RANDOM = random.Random()  # not the one that tests seed


def find_available_port(self: LocalPortCache, ip: str) -> int:
    while True:
        port = RANDOM.randrange(10_000, 32_000, WORKERS) + WORKER % WORKERS
        with socket.socket() as probe:
            if port not in self.currently_used_ports and probe.connect_ex((ip, port)) != 0:
                self.currently_used_ports.add(port)
                return port


LocalPortCache.find_available_port = find_available_port
