"""JSON to model and back: the only place that knows the JSON's words.

`fields` reads single values, `policies` and `environment` what people write, each with all problems at once; `kept`
is the form in which the state file keeps a world.
"""

from vpcctl.spec.environment import read_environment, with_instance
from vpcctl.spec.fields import TYPE_NAMES, parse_address, parse_prefix
from vpcctl.spec.kept import policy_to_json, rule_to_json, world_from_json, world_to_json
from vpcctl.spec.policies import PolicyDocument, read_policies, read_policy

__all__ = [
    "TYPE_NAMES",
    "PolicyDocument",
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
