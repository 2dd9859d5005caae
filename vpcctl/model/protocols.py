"""What the kernel makes of IP protocols: which ICMP messages begin a flow, and what source NAT can distinguish.

Facts alone.  The oracle, the analysis and the compiler each reason on them with code of their own.
"""

from __future__ import annotations

from vpcctl.model.policy import ICMP, ICMPV6, SCTP, TCP, UDP

# The type of the reply to each ICMP request that connection tracking knows: echo, timestamp, information and address
# mask (RFC 792, RFC 950); for ICMPv6 echo and node information (RFC 4443, RFC 4620).  Messages of other types are
# replies or errors, which belong to a flow or are invalid; they never begin one (net/netfilter/
# nf_conntrack_proto_icmp.c and …_icmpv6.c: invmap, valid_new).
REPLY_TYPE = {ICMP: {8: 0, 13: 14, 15: 16, 17: 18}, ICMPV6: {128: 129, 139: 140}}
# The ICMP of each IP version.
ICMP_OF = {4: ICMP, 6: ICMPV6}
# Source NAT distinguishes flows by their ports, or by the identifier of ICMP, which is kept where that is possible.
PORTED = (TCP, UDP, SCTP)
TRANSLATED = (ICMP, *PORTED)
