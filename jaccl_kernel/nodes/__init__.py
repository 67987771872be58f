"""Operations on a single node: run commands, read folders, and copy files.

A node is this machine or a Mac that system ssh reaches. Does not depend on clusters, hostfiles or models.
"""
