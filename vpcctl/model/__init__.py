"""What people want, as values: networks, policies, the operations on them, and the oracle of what they mean.

Imports nothing but `errors` and `names`.
"""
