"""What panels are made of: a log, progress, and blocks of HTML. All of it renders offline.

Views know nothing of steps or clusters. Their methods may be called from any thread.
"""
