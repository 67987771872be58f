"""The notebooks' side: panels (one per step), the views that they are made of, and what they remember.

Panels show what a step tells and returns; they decide nothing. The work itself runs off the main thread, so
that the kernel stays answerable. Nothing is imported here, to keep `jaccl` quick: import from the modules.
"""
