"""Small real pretrained parts that ordinary package registries carry: fetched, checked, brought into usual forms."""
