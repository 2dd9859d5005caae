"""JSON to model and back: the only place that knows the JSON's words.

`fields` reads single values, `policies` and `environment` what people write, each with all problems at once; `kept`
is the form in which the state file keeps a world, and `lists` are the parts of it that wait to be asked for.
"""

from vpcctl.spec.environment import read_environment, with_instance
from vpcctl.spec.fields import TYPE_NAMES, parse_address, parse_prefix
from vpcctl.spec.kept import decode, policy_to_json, rule_to_json, world_from_json, world_to_json
from vpcctl.spec.policies import MOST_PREFIXES, PolicyDocument, read_policies, read_policy

__all__ = [
    "MOST_PREFIXES",
    "TYPE_NAMES",
    "PolicyDocument",
    "decode",
    "parse_address",
    "parse_prefix",
    "policy_to_json",
    "read_environment",
    "read_policies",
    "read_policy",
    "rule_to_json",
    "with_instance",
    "world_from_json",
    "world_to_json",
]
