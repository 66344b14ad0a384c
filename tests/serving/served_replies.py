"""What replies of the endpoint hold; a reply of another status fails the test."""

import json


def content(reply):
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def error(reply, status):
    assert reply.status_code == status, reply.text
    found = json.loads(reply.content)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found
