"""Parts of addresses, and texts without their secrets."""

from __future__ import annotations

import pytest

from sfss_ray.errors import DataError
from sfss_ray.storage.addresses import has_password, is_address, split_address, without_secret


@pytest.mark.parametrize(
    ("text", "root", "key"),
    [
        ("s3://fleet/runs//first/", "s3://fleet", "runs/first"),
        ("S3://AKIA:SECRET@fleet/runs", "s3://AKIA:SECRET@fleet", "runs"),
        ("s3:/AKIA:SECRET@fleet/runs", "s3://AKIA:SECRET@fleet", "runs"),
        ("s3://AKIA:SEC/RET+x=@fleet/runs", "s3://AKIA:SEC%2FRET+x=@fleet", "runs"),
        ("s3://AKIA:SEC%2FRET@fleet", "s3://AKIA:SEC%2FRET@fleet", ""),
        ("s3://minio:SEC@RET@fleet/a@2x", "s3://minio:SEC%40RET@fleet", "a@2x"),
        ("s3://fleet/a@2x/b:c@d", "s3://fleet", "a@2x/b:c@d"),
        ("hdfs://host:8020/a@2x", "hdfs://host:8020", "a@2x"),
        ("abfss://box:K/Y==@account/runs", "abfss://box:K%2FY==@account", "runs"),
        ("abfss://box@account/runs", "abfss://box@account", "runs"),
    ],
)
def test_user_bucket_and_key_are_told_apart(text, root, key):
    address = split_address(text)
    assert address is not None
    assert (address.root, address.key) == (root, key)
    again = split_address(f"{address.root}/{address.key}")
    assert again == address, "an address that was split once is split in the same way"


def test_options_and_files():
    address = split_address("s3://fleet/a?region=eu-1&scheme=http")
    assert address is not None
    assert (address.key, address.options) == ("a", "region=eu-1&scheme=http")
    file = split_address("File:///disk/my%20run")
    assert file is not None
    assert (file.scheme, file.key) == ("file", "disk/my run")


@pytest.mark.parametrize("text", ["runs/first", "/data/s3://x", "C:/data", "a b:/c", "night:2", ""])
def test_paths_are_no_addresses(text):
    assert not is_address(text)
    assert split_address(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://", "'s3://' names no bucket: write an address as s3://bucket/folder"),
        ("s3:", "'s3:' names no bucket"),
        ("s3://K:SECRET@/images", "'s3:///images' names no bucket"),
        ("s3://K:SECRET@?secret_key=SECRET", "'s3://' names no bucket"),
        ("abfss://box@/images", "'abfss://box@/images' names no bucket"),
        ("file://", "'file://' names no folder: write an address as file:///folder"),
        ("s3://K:SEC/R@ET@fleet", "write '@' as %40 and '/' as %2F"),
    ],
)
def test_addresses_that_are_refused(text, message):
    with pytest.raises(DataError) as refused:
        split_address(text)
    assert message in str(refused.value)
    for part in ("SEC", "RET"):
        assert part not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://user:secret@fleet/a", "s3://fleet/a"),
        ("s3:/user:secret@fleet/a", "s3:/fleet/a"),
        ("s3://user:sec/ret@fleet/a", "s3://fleet/a"),
        ("s3://user:sec@ret@fleet/a@2x", "s3://fleet/a@2x"),
        (
            "no file system (URI: s3a://user:secret@bkt), twice",
            "no file system (URI: s3a://bkt), twice",
        ),
        ("'S3://u:secret@a/b' and 'gs://u:secret@c'", "'S3://a/b' and 'gs://c'"),
        ("abfss://box:secret@account/a", "abfss://box@account/a"),
        ("abfs://:secret@account/a", "abfs://account/a"),
        ("s3://fleet/a@2x", "s3://fleet/a@2x"),
        ("http://127.0.0.1:8265 and a@b", "http://127.0.0.1:8265 and a@b"),
    ],
)
def test_texts_without_secrets(text, shown):
    assert without_secret(text) == shown


def test_addresses_with_a_password():
    assert has_password("s3://user:secret@fleet")
    assert not has_password("s3://fleet")
    assert not has_password("abfss://box@account")
