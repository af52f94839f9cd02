"""What `verify` can find: a closed list of kinds."""

from dataclasses import dataclass

KINDS: dict[str, str] = {
    "symlink": "a symbolic link or another thing that is no plain file; it is not followed",
    "foreign-file": "a file that the format does not have",
    "manifest": "manifest.json cannot be believed: index and shards are checked against each other only",
    "counts": "the manifest's counts are not those of the index",
    "index-missing": "an index that is not there",
    "index-size": "an index of another size than the manifest says",
    "index-sha256": "an index whose bytes do not fit the manifest",
    "index-unreadable": "no index at all; the samples are found in the shards",
    "index-record": "a record that is not possible: key, camera, or an offset outside of its shard",
    "index-order": "records that are not in the order of shards and offsets",
    "duplicate-key": "a key that an earlier sample of the split has",
    "identity-divided": "images of one identity that are not adjacent, or in two shards",
    "shard-missing": "a shard that is not there or cannot be read",
    "shard-size": "a shard of another size than the manifest says",
    "shard-sha256": "a shard whose bytes do not fit the manifest",
    "tar-header": "a member's header that does not fit its checksum or the format",
    "tar-type": "a member that is no regular file (link, device, folder, ...)",
    "tar-name": "a member's name that the format does not have (dots, folders, suffix)",
    "tar-truncated": "a member that ends after its shard",
    "tar-padding": "bytes between two members",
    "tar-end": "a shard that does not end with two zero blocks after its last member",
    "tar-duplicate": "a second member of the same name",
    "tar-unlisted": "a member that the index does not have",
    "tar-missing": "a member of the index that is not in the shard",
    "tar-order": "members that do not stand as image, mask, json of one sample after the other",
    "index-disagrees": "a member of another name or length than the index says",
    "image-crc32": "an image whose bytes do not fit the index",
    "mask-crc32": "a mask whose bytes do not fit the index",
    "json-crc32": "a json member whose bytes do not fit the index",
    "image-undecodable": "an image that its decoder refuses",
    "mask-undecodable": "a mask that is no sound PNG",
    "too-many-pixels": "an image or mask larger than the limit: a decompression bomb",
    "image-mode": "an image of a mode that would be shown wrongly (16-bit grey)",
    "mask-mode": "a mask that is not 8-bit grey",
    "mask-size": "a mask of another size than its image",
    "json-invalid": "a json member that is not the object that the format has",
    "json-disagrees": "a json member with another pid, camid or split than its index record, key or folder",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `kind` is one of KINDS.

    `shard` is the file's path in the folder (an index or the manifest too); `key` the sample's, `offset` the
    place in the file in bytes, both None where they do not apply. `detail` is for people.
    """

    shard: str
    key: str | None
    offset: int | None
    kind: str
    detail: str

    @property
    def message(self) -> str:
        """One line."""
        place = self.shard + (f": {self.key}" if self.key else "")
        place += f" at offset {self.offset}" if self.offset is not None else ""
        return " ".join(f"{place}: {self.kind}: {self.detail or KINDS[self.kind]}".split())
