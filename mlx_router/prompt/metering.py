"""Builds the meter into a template: what Jinja lets no environment intercept is rewritten."""

# ruff: noqa: N802 - the visitor finds its methods by the names of the node classes

from __future__ import annotations

from jinja2 import Environment, nodes
from jinja2.visitor import NodeTransformer


def meter(tree: nodes.Template, environment: Environment) -> nodes.Template:
    """The same template, in which loops tick, and what it makes goes past the sandbox (the
    methods ``tick``, ``made``, ``sliced`` and ``joined``). Changes ``tree``."""
    _Meter().visit(tree)
    # Constants are folded with the environment's help, so that new nodes must know it as well.
    tree.set_environment(environment)
    return tree


class _Meter(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        tick = _call("tick", [], node)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes, node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _call("sliced", [node], node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._literal(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        if node.ctx != "load":  # the names in {% for key, value in … %}
            return node
        return self._literal(node, node.items)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._literal(node, [pair.value for pair in node.items])

    def _literal(self, node: nodes.Expr, items: list[nodes.Expr]) -> nodes.Node:
        self.generic_visit(node)
        # ['user', 'system'] is as small as it looks.
        if all(isinstance(item, nodes.Const) for item in items):
            return node
        return _call("made", [node], node)


def _call(method: str, arguments: list[nodes.Expr], at: nodes.Node) -> nodes.Expr:
    target = nodes.EnvironmentAttribute(method, lineno=at.lineno)
    return nodes.Call(target, arguments, [], None, None, lineno=at.lineno)
