"""What is printed and kept tells where data lie, and nothing that opens the door to them."""

import pytest

from shards.errors import InputError
from shards.plaintext import is_masked, masked, shown_place

pytestmark = pytest.mark.fast

URLS = {
    "https://host/train": "https://host/train",
    "s3://bucket/a@b/train": "s3://bucket/a@b/train",
    "http://host:8080/a@b": "http://host:8080/a@b",
    "https://user:secret@host/train": "https://***@host/train",
    "https://secret@host/train": "https://***@host/train",
    "ftp://user:sec@ret@host/train": "ftp://***@host/train",
    "ftp://user:sec/ret@host/train": "ftp://***@host/train",
    "https://host/train?sig=secret&x=1": "https://host/train?***",
    "https://host/train#secret": "https://host/train?***",
    "simplecache::https://u:secret@host/train": "simplecache::https://***@host/train",
    "403, url='https://u:secret@host/x?key=secret', again": "403, url='https://***@host/x?***', again",
    "https://u:secret@host/a and https://host/b?secret; check": "https://***@host/a and https://host/b?***; check",
}


@pytest.mark.parametrize(("text", "expected"), URLS.items())
def test_a_url_is_shown_without_user_password_query_and_fragment(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked(expected) == expected
    assert is_masked(masked(text)) == (expected != text)
    assert str(InputError(f"{text}: can't be read")) == f"{expected}: can't be read"


COMMANDS = {
    "pipe:cat /data/{name}": "pipe:cat /data/{name}",
    "pipe:aws s3 cp s3://bucket/train/{name} -": "pipe:aws *** s3://bucket/train/{name}",
    "pipe:curl -H 'Authorization: Bearer secret' https://u:secret@h/{name}?k=secret": "pipe:curl *** https://***@h/{name}?***",
    "pipe:TOKEN=secret curl $TOKEN/{name}": "pipe:*** $TOKEN/{name}",
    "pipe:sh -c 'curl --user a:secret https://h/{name}'": "pipe:sh *** https://h/{name}",
    "pipe:sshpass -p secret scp host:x/{name} /dev/stdout": "pipe:sshpass *** host:x/{name}",
    "pipe:no mark": "pipe:no ***",
}


@pytest.mark.parametrize(("place", "expected"), COMMANDS.items())
def test_of_a_command_only_the_program_and_the_file_are_shown(place: str, expected: str) -> None:
    assert shown_place(place) == expected
    assert shown_place(expected) == expected
    assert is_masked(expected) == (expected != place)
