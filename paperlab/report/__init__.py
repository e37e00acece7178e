"""One static page of what is known: runs with their curves, claims, benchmarks, the fault campaign.

    reading, runs, records    files -> what they say, whatever state they are in
    thinning, charts, bars    numbers -> lines and bars (SVG that takes its colours from the page)
    show_*, page              the sections, and the whole page; page.css and page.js go into it

Nothing here computes a result: every figure on the page stands in a file that a program wrote. A file that is damaged or half
written is named on the page, and the rest of the page stands. Started by `python -m paperlab.report`.
"""
