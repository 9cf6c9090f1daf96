"""Bitstreams for boards, from open tools: the flow, what it reports, and the committed table of what it reached."""
