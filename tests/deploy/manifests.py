#!/usr/bin/python3
"""Prints the documents of Kubernetes manifests as one JSON array, if every one is what Kubernetes takes.

    tests/deploy/manifests.py SCHEMAS FILE...

SCHEMAS holds a folder for each version of Kubernetes, with strict schemas: a field that they do not know is an error, and
so is a key that is written twice.
"""
import functools
import json
import pathlib
import re
import sys

import jsonschema
import yaml


class Strict(yaml.SafeLoader):
    """YAML in which no key of a mapping is written twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)

    # A moment, unquoted, is text to Kubernetes.
    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@functools.cache
def validator(schemas, name):
    """Returns what judges documents of one kind, or None if there is no such kind."""
    if not (schemas / name).exists():
        return None
    known = {"https://kubernetes.io/api/_definitions.json": definitions(schemas)}
    schema = json.loads((schemas / name).read_text())
    resolver = jsonschema.RefResolver("https://kubernetes.io/api/", schema, store=known)
    return jsonschema.Draft202012Validator(schema, resolver=resolver)


@functools.cache
def definitions(schemas):
    return json.loads((schemas / "_definitions.json").read_text())


def complaints(document, schemas):
    version = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", document.get("apiVersion", "none"))
    judge = validator(schemas, f"{document.get('kind', 'none').lower()}-{version}.json")
    if judge is None:
        return [f"no such kind: {document.get('apiVersion')} {document.get('kind')}"]
    found = judge.iter_errors(document)
    return [f"{'.'.join(str(step) for step in error.absolute_path)}: {error.message}" for error in found]


def main():
    versions = sorted(folder for folder in pathlib.Path(sys.argv[1]).iterdir() if folder.is_dir())
    if not versions:
        sys.exit(f"no schemas in {sys.argv[1]}: run tests/pg/install.sh test")
    documents, failed = [], []
    for file in sys.argv[2:]:
        try:
            read = [one for one in yaml.load_all(pathlib.Path(file).read_text(), Loader=Strict) if one]
        except yaml.YAMLError as error:
            failed.append(f"{file}: {error}")
            continue
        for document in read:
            name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
            for version in versions:
                failed += [f"{file}: {name}: {version.name}: {said}" for said in complaints(document, version)]
        documents += read
    if failed:
        sys.exit("\n".join(failed))
    print(json.dumps(documents))


if __name__ == "__main__":
    main()
