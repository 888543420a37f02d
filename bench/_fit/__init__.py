"""Parts of ``bench.fit``: trials, the fit, the real engine, and the loads it is compared on."""
