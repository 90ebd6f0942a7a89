"""The values that several rooms share.

In `access`, who somebody is and what they may do; in `alerts`, alerts and their pictures; in
`targets`, where alerts and stream events are delivered.
"""
