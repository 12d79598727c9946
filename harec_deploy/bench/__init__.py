"""How fast a bundle runs here and where the time goes: latency, throughput, decoding, labelling; and what to pick.

measure.py   statistics of times, and works that take turns
gpu.py       a call's time by the GPU's own clock
noise.py     what else the machine did meanwhile
ways.py      the ways to run a bundle that are compared, their clips and accuracy
engine.py    latency, throughput and pick: clips in memory
videos.py    decode and label: files
result.py    what a measurement comes to
output.py    that as table, JSON and Markdown; plots.py as pictures
"""
