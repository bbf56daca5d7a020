"""What the head end knows about OpenDCU's messages, without AWS: no boto3, no clock, no environment.

`envelope` says whether a message is one and opens it; `keys` where its bytes lie; `acks` what the gateway is told;
`rows` how readings become items of the table and items become readings again; `notices` alarms, events and findings.
The contract is DESIGN sections 5, 6 and 9; the same words stand in cloud/schemas/.
"""
