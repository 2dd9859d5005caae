"""JSON to values and back: the only package that knows the words of the JSON documents.

`reading` is about text and structure, `fields`, `policies` and `environment` about the meaning of what people write,
each with all problems at once; `codec` is the form in which the state file keeps a world.  Imports `model`.
"""
