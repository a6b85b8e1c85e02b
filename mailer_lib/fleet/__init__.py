"""Records of what mail leaves from: dispatch servers, sending pools, sending domains.

A *sending pool* is the set of servers that share a reputation; limits by mailbox provider belong to it. Every change is
in the audit log.
"""
