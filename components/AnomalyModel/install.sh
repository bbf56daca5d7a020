#!/bin/sh
# Puts the anomaly model into the work directory, where the detector of the other components looks for it.
#   sh install.sh WORK VERSION
# WORK/model is a link that changes in one step; the folder of the version before is removed afterwards.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1%/}
folder=model-$2
if [ ! -e "$work/$folder/.complete" ] || ! cmp -s "$here/model.json" "$work/$folder/model.json"; then
    rm -rf "$work/.part" "${work:?}/$folder"
    mkdir -p "$work/.part"
    cp "$here/model.onnx" "$here/model.json" "$here/model.sig" "$work/.part/"
    sync
    : >"$work/.part/.complete"
    mv "$work/.part" "$work/$folder"
fi
rm -f "$work/.model"
ln -s "$folder" "$work/.model"
mv -T "$work/.model" "$work/model"
for old in "$work"/model-*; do
    [ "$old" = "$work/$folder" ] || rm -rf "$old"
done
