"""Images: their bytes fetched, what is admitted, and pixels decoded.

``fetch`` needs the base install only; ``guard`` and ``decode`` need ``pinq[worker]``,
so nothing is imported here.
"""
