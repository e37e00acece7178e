"""The fault campaign: real runs are killed, stopped, starved and damaged, go on, and must end as if nothing had happened.

python -m tests.faults --rounds=100 --seed=0 --json=results/faults.json

damage.py      what can happen to a file
processes.py   the tiny run through the front door, in processes of its own; forkserver.py starts them quickly
ending.py      what a run has become: every leaf, bit for bit, metrics, summary
kinds.py       the faults, one function each
campaign.py    rounds, chosen from a seed, and the record of them
"""
